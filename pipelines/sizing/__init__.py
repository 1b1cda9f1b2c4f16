"""How long a job would take, and on how much: rates of a machine, and a simulation of how work reaches workers."""
