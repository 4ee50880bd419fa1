version: str
compiler: str
with_cuda: bool
cuda_version: str
cuda_architectures: str
