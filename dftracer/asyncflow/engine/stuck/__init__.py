"""What waits for something that cannot come: circles, and waits that take long."""
