"""Training and the networks that are trained: what every stage with weights shares."""
