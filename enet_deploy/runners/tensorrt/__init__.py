"""TensorRT: build, load and run engines, on top of CUDA. Version differences are in `library`."""
