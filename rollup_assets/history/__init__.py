"""The table's history: what each publish was made from, what changed between two snapshots, and going back to an earlier one."""
