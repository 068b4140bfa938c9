"""What a run costs on a slice of TPUs that need not be there."""
