"""What happens: one simulated GPU, its processes and their requests."""
