"""What waits in an engine: for ends when it is left, for each other in circles, and for what."""
