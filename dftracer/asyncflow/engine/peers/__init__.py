"""What programs that were written for another engine of this interface rely on."""
