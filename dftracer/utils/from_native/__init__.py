"""What the Rust module calls by name. Its strings say which; nothing here is for users."""
