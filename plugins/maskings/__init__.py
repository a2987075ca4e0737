"""Ways to choose which patches the student does not see."""
