"""Update rules with their parameter groups and schedules."""
