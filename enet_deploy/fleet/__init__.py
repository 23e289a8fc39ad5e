"""Label millions of images and bags with Ray: sources, the output folder, what an actor does, the cluster."""
