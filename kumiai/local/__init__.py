"""Real servers on one machine without Docker: each a folder, a free loopback port and a process of ours."""
