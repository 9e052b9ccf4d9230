"""The table's history: what each publish was made from, what changed between two snapshots, and two ways to rewrite it.

``rollback`` goes back to an earlier snapshot, ``migrate`` makes the table anew with other settings. The commits are ``iceberg``'s.
"""
