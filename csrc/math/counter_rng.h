#pragma once

#include <cstdint>

#include "math/host_device.h"
#include "math/number.h"

// Counter-based random numbers: a pure function of a key and a counter, so that every replica, and a run resumed from a
// checkpoint, draws the same numbers, and no state has to be kept, saved or advanced.
namespace torch_ire {

// Finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64 bits in which every output bit depends on every
// input bit.
TORCH_IRE_HD uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

TORCH_IRE_HD uint64_t mix64(uint64_t a, uint64_t b) {
  return mix64(mix64(a) ^ b);
}

// 32-bit finalizer in the family of MurmurHash3's; 32-bit multiplications vectorise on every x86-64 and GPU, 64-bit
// ones do not.
TORCH_IRE_HD uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// 32 random bits for element `i` of a tensor whose key already mixes seed, step and tensor. Two rounds keyed by
// different halves: neighbouring elements and neighbouring keys share no structure.
TORCH_IRE_HD uint32_t random_bits(uint64_t key, int64_t i) {
  const uint32_t lo = static_cast<uint32_t>(i);
  const uint32_t hi = static_cast<uint32_t>(static_cast<uint64_t>(i) >> 32);
  return mix32(mix32(lo ^ static_cast<uint32_t>(key)) + static_cast<uint32_t>(key >> 32) + hi * 0x9e3779b9u);
}

// Uniform in (0, 1): 52 random bits and a half, so neither end is ever returned.
TORCH_IRE_HD double uniform_open(uint64_t random) {
  return (static_cast<double>(random >> 12) + 0.5) * 0x1p-52;
}

// Stochastic rounding to bfloat16: the 16 discarded bits plus a uniform 16-bit number carry into the kept ones with
// probability equal to the discarded fraction, so the expectation of the result is x. Values that are not finite are
// rounded to nearest, which keeps them what they are.
TORCH_IRE_HD bfloat16 round_stochastic(float x, uint32_t random) {
  const uint32_t u = bits_of(x);
  const bool finite = (u & 0x7f800000u) != 0x7f800000u;
  return finite ? bfloat16{static_cast<uint16_t>((u + (random & 0xffffu)) >> 16)} : round_nearest<bfloat16>::from(x);
}

}  // namespace torch_ire
