"""Who does the tasks that variants are made of: this process, or the nodes of a cluster."""
