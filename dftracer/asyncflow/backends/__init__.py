"""Where tasks run. Each module holds one backend; ``base`` says what a backend is."""
