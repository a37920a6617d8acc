"""What a call of ``personalize`` may change, and what it leaves."""
