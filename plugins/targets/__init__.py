"""What the student is to predict."""
