"""What is asked: a call checked and complete, what it is compiled for, which backend runs it, and the plan of it."""
