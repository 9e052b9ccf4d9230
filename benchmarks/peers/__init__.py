"""What a user could pick instead: each peer's tasks in several forms, as its own experts would write them."""
