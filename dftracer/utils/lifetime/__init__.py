"""What the package does as it is imported, as the process forks, and at its exit."""
