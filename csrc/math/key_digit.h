#pragma once

#include <cstdint>
#include <limits>

#include "math/host_device.h"
#include "math/selection.h"

// Digits of keys in base kBuckets. Counting the digits at one place after the other, from the top, of the keys that
// agree in all higher places finds the k-th smallest of any number of lists, wherever they are: counts add up.
namespace torch_ire {

// One place: the digit is key >> shift, cut to kBucketBits, of the keys whose higher bits, as a signed number, are
// `prefix`. The shift is arithmetic, so the digit at the top carries the sign and is the whole of key >> shift.
template <class Key>
struct KeyDigit {
  static constexpr int kKeyBits = 8 * static_cast<int>(sizeof(Key));

  Key prefix;
  int shift;

  // A prefix that no key has, because it has more bits than are left of one, must not be cut to one that some key has.
  TORCH_IRE_HD static KeyDigit at(int shift, int64_t prefix) {
    constexpr Key none = std::numeric_limits<Key>::min();
    const bool fits = prefix >= none && prefix <= std::numeric_limits<Key>::max();
    return {fits ? static_cast<Key>(prefix) : none, shift};
  }

  TORCH_IRE_HD bool is_top() const { return shift + kBucketBits >= kKeyBits; }

  // At the top every key counts, and half the buckets are below zero.
  TORCH_IRE_HD int top_bucket(Key key) const { return static_cast<int>(key >> shift) + static_cast<int>(kBuckets / 2); }

  // Below the top; kBuckets for a key of another prefix.
  TORCH_IRE_HD int inner_bucket(Key key) const {
    const Key digits = key >> shift;
    const int bucket = static_cast<int>(digits & static_cast<Key>(kBuckets - 1));
    return (digits >> kBucketBits) == prefix ? bucket : static_cast<int>(kBuckets);
  }
};

}  // namespace torch_ire
