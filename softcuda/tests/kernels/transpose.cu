// out[c][r] = in[r][c] through a padded tile in shared memory; blocks of 32 x 8 threads.
#include "mutants.cuh"

template <int M>
__global__ void transpose(const float *in, float *out, int rows, int cols) {
  __shared__ float tile[BUG(1) ? 31 : 32][33];
  int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
  for (int j = 0; j < (BUG(2) ? 16 : 32); j += 8)
    if (x < (BUG(3) ? cols + 1 : cols) && y + j < (BUG(4) ? rows + 1 : rows))
      tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * cols + x]; // caught 1 3 4 5
  if (BUG(6)) {
    if (y < rows - 4) __syncthreads();
  } else if (!BUG(5)) {
    __syncthreads();
  }
  x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32 + threadIdx.y;
  if (BUG(7)) y = threadIdx.y;
  for (int j = 0; j < 32; j += 8)
    if (x < rows && y + j < (BUG(8) ? rows : cols))
      out[(y + j) * (BUG(9) ? cols : rows) + x] = tile[threadIdx.x][threadIdx.y + j]; // caught 2 5 6 7 8 9
}

#define INSTANCE(n) template __global__ void transpose<n>(const float *, float *, int, int);
INSTANCE(0) INSTANCE(1) INSTANCE(2) INSTANCE(3) INSTANCE(4) INSTANCE(5) INSTANCE(6) INSTANCE(7) INSTANCE(8) INSTANCE(9)
