"""Machine code of NVIDIA GPUs (SASS): its listing, and one thread's way through it."""
