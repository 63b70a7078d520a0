// Inclusive prefix sums of n numbers in one pass: warps by shuffle, blocks through shared memory, and
// each block waits for the sum of all blocks before it.
#include "mutants.cuh"

template <int M>
__global__ void scan(const int *in, int *out, int *prefix, int *ready, int n) {
  __shared__ int sums[32];
  __shared__ int before;
  __shared__ int exchange[BUG(1) ? 1024 : 1];
  int t = threadIdx.x, lane = t % 32, warp = t / 32, i = blockIdx.x * blockDim.x + t;
  int v = i < n ? in[i] : 0; // caught 10
  for (int offset = 1; offset < 32; offset *= 2) {
    if (BUG(1)) {
      exchange[t] = v; // caught 1
      int other = lane >= offset ? exchange[t - offset] : 0; // caught 1
      v += other;
    } else if (BUG(2)) {
      if (lane >= offset) v += __shfl_up_sync(0xffffffffu, v, offset); // caught 2
    } else {
      int other = __shfl_up_sync(0xffffffffu, v, offset);
      if (lane >= (BUG(3) ? offset - 1 : offset)) v += other; // result 3
    }
  }
  if (lane == 31) sums[warp] = v;
  if (!BUG(4)) __syncthreads();
  if (warp == 0) {
    int s = lane < blockDim.x / 32 ? sums[lane] : 0; // caught 4
    for (int offset = 1; offset < 32; offset *= 2) {
      int other = __shfl_up_sync(0xffffffffu, s, offset);
      if (lane >= offset) s += other;
    }
    sums[lane] = s;
    if (BUG(5)) asm volatile("bar.sync 1;" ::: "memory"); // caught 5
  }
  if (!BUG(6)) __syncthreads();
  if (warp > 0) v += sums[warp - 1]; // caught 6
  if (t == blockDim.x - 1) {
    int carried = 0;
    if (blockIdx.x > 0) {
      if (BUG(7)) {
        carried = prefix[blockIdx.x - 1]; // caught 7
      } else {
        while (atomicAdd(&ready[BUG(8) ? blockIdx.x : blockIdx.x - 1], 0) == 0) {} // caught 8
        __threadfence();
        carried = prefix[blockIdx.x - 1];
      }
    }
    prefix[blockIdx.x] = carried + v; // caught 7
    if (!BUG(7)) {
      __threadfence();
      atomicExch(&ready[blockIdx.x], 1);
    }
    before = carried;
  }
  if (!BUG(9)) __syncthreads();
  if (i < n) out[i] = v + before; // caught 9
}

#define INSTANCE(n) template __global__ void scan<n>(const int *, int *, int *, int *, int);
INSTANCE(0) INSTANCE(1) INSTANCE(2) INSTANCE(3) INSTANCE(4) INSTANCE(5) INSTANCE(6) INSTANCE(7) INSTANCE(8) INSTANCE(9)
