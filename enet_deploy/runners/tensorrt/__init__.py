"""TensorRT: engines built, loaded and run; CUDA beneath."""
