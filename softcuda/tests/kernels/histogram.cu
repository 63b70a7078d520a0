// Counts of 256 byte values: a histogram per block in shared memory, added to the global one at the end.
#include "mutants.cuh"

template <int M>
__global__ void histogram(const uint8_t *in, unsigned *bins, int n) {
  __shared__ unsigned local[BUG(1) ? 200 : 256];
  int t = threadIdx.x;
  if (!BUG(2))
    for (int b = t; b < (BUG(3) ? 128 : 256); b += blockDim.x)
      if (!BUG(1) || b < 200) local[b] = 0; // caught 4
  if (!BUG(4)) __syncthreads();
  const uchar4 *words = reinterpret_cast<const uchar4 *>(in + (BUG(5) ? 1 : 0));
  for (int i = blockIdx.x * blockDim.x + t; i < n / 4; i += gridDim.x * blockDim.x) {
    uchar4 w = words[BUG(9) ? i + 1 : i]; // caught 5 9
    uint8_t values[4] = {w.x, w.y, w.z, w.w};
    for (int k = 0; k < 4; k++) {
      if (BUG(6))
        local[values[k]] += 1; // caught 6
      else
        atomicAdd(&local[values[k]], 1u); // caught 1 2 3 4
    }
  }
  if (!BUG(7)) __syncthreads();
  for (int b = t; b < (BUG(1) ? 200 : 256); b += blockDim.x) {
    unsigned count = local[b]; // caught 7
    if (BUG(8))
      bins[b] += count; // caught 8
    else
      atomicAdd(&bins[b], count);
  }
}

#define INSTANCE(n) template __global__ void histogram<n>(const uint8_t *, unsigned *, int);
INSTANCE(0) INSTANCE(1) INSTANCE(2) INSTANCE(3) INSTANCE(4) INSTANCE(5) INSTANCE(6) INSTANCE(7) INSTANCE(8) INSTANCE(9)
