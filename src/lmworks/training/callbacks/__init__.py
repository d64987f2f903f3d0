"""What happens beside the steps: one file per callback."""
