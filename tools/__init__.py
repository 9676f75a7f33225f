"""What makes and checks the things that are published: the wheel, and the tree for the hub."""
