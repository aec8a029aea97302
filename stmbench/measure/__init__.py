"""How things are measured: multiply-accumulates, time, memory, energy, and what the machine can reach."""
