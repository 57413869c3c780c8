"""How far tasks have come: counts, and views and a file that show them while tasks run."""
