// Sums of rows: each block adds a row of n numbers, warps by shuffle, then across warps through shared
// memory; the total of all rows is gathered by atomics.
#include "mutants.cuh"

__device__ __forceinline__ float warp_sum(float v, unsigned mask) {
  for (int offset = 16; offset > 0; offset /= 2)
    v += __shfl_down_sync(mask, v, offset); // caught 3 4
  return v;
}

template <int M>
__global__ void reduce(const float *in, float *sums, float *total, int n) {
  __shared__ float partial[32];
  __shared__ volatile float tree[BUG(6) ? 64 : 1];
  int t = threadIdx.x, lane = t % 32, warp = t / 32, warps = blockDim.x / 32;
  float v = 0;
  for (int i = t; i < (BUG(1) && blockIdx.x == gridDim.x - 1 ? n + 1 : n); i += blockDim.x)
    v += in[blockIdx.x * n + i]; // caught 1
  for (int round = 0; round < 2; round++) {
    float s = v * (round + 1);
    if (BUG(4)) {
      if (lane < 16) s = warp_sum(s, 0xffffffffu);
    } else {
      s = warp_sum(s, BUG(3) ? 0x0000ffffu : 0xffffffffu);
    }
    if (lane == 0) partial[warp] = s; // caught 7
    if (!BUG(2)) __syncthreads();
    if (warp == 0) {
      s = lane < (BUG(5) ? 32 : warps) ? partial[lane] : 0; // caught 2 5
      if (BUG(6)) {
        tree[lane] = s;
        tree[lane + 32] = 0;
        for (int offset = 16; offset > 0; offset /= 2)
          tree[lane] += tree[lane + offset]; // caught 6
        s = tree[0];
      } else {
        s = warp_sum(s, 0xffffffffu);
      }
      if (lane == 0) {
        sums[blockIdx.x] = s;
        if (BUG(8))
          *total += s; // caught 8
        else
          atomicAdd(total, s);
      }
    }
    if (!BUG(7)) __syncthreads();
  }
}

#define INSTANCE(n) template __global__ void reduce<n>(const float *, float *, float *, int);
INSTANCE(0) INSTANCE(1) INSTANCE(2) INSTANCE(3) INSTANCE(4) INSTANCE(5) INSTANCE(6) INSTANCE(7) INSTANCE(8)
