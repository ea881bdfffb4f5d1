"""Who is let in, in which order, and how much of each: decisions without a loop, a socket or a clock."""
