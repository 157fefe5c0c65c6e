"""Reference implementations that share no code with octavo: what the tests compare against."""
