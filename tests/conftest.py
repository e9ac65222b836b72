"""One thread for each test process: on small tensors, threads that wait for each other cost more than they save."""

import torch

torch.set_num_threads(1)
