"""Simulated B-mode ultrasound with known anatomy, lesions and physics."""
