// Kernels whose cost is known on paper.
#include <cuda_runtime.h>

// n / 4 vectors, one per thread.
extern "C" __global__ void copy(const float4 *in, float4 *out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
}

// Every `stride`th number.
extern "C" __global__ void gather(const float *in, float *out, int stride) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i * stride];
}

template <int PITCH>
__device__ __forceinline__ void transpose(const float *in, float *out, int n) {
  __shared__ float tile[32 * PITCH];
  int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
#pragma unroll
  for (int j = 0; j < 32; j += 8) tile[(threadIdx.y + j) * PITCH + threadIdx.x] = in[(y + j) * n + x]; // fill
  __syncthreads();
  x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32 + threadIdx.y;
#pragma unroll
  for (int j = 0; j < 32; j += 8) out[(y + j) * n + x] = tile[threadIdx.x * PITCH + threadIdx.y + j]; // drain
}

extern "C" __global__ void padded(const float *in, float *out, int n) { transpose<33>(in, out, n); }
extern "C" __global__ void unpadded(const float *in, float *out, int n) { transpose<32>(in, out, n); }
