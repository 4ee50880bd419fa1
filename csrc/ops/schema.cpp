// Every operator of the library, grouped. Implementations register themselves in the file of the operator's name.
#include "ops/library.h"

TORCH_IRE_LIBRARY(m) {
  // Steps. theta <- theta + (1 + kappa n) Delta, Delta the displacement of the base optimizer. An empty `flat_masks`
  // means n = 0, an empty `restore_from` that the step starts at the parameters themselves, `compensations`,
  // `master_params` and `rounding_keys` that are all empty rounding to nearest. `lr_tensor` and `kappa_tensor` override
  // the floats. state_steps are advanced by one, unless `found_inf` is non-zero: then nothing changes but what
  // `restore_from` restores.
  m.def(
      "fused_adamw_flat_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] state_steps, Tensor[] flat_masks, Tensor[] restore_from, Tensor(e!)[] compensations, "
      "Tensor(f!)[] master_params, *, float lr, float beta1, float beta2, float eps, float weight_decay, float kappa, "
      "bool amplify_weight_decay=True, bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None, "
      "Tensor? lr_tensor=None, Tensor? kappa_tensor=None, int[] rounding_keys=[]) -> ()");
  // momentum_buffers are empty where momentum = 0; state_steps may be empty unless dampening or rounding_keys need the
  // count.
  m.def(
      "fused_sgd_flat_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] state_steps, "
      "Tensor[] flat_masks, Tensor[] restore_from, Tensor(d!)[] compensations, Tensor(e!)[] master_params, *, "
      "float lr, float momentum, float dampening, float weight_decay, bool nesterov, float kappa, "
      "bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None, Tensor? lr_tensor=None, Tensor? "
      "kappa_tensor=None, int[] rounding_keys=[]) -> ()");
  // theta += kappa n (theta - (1 - decay) previous): IRE after a step that some other optimizer took from `previous`.
  m.def(
      "displacement_flat_(Tensor(a!)[] params, Tensor[] previous, Tensor[] flat_masks, *, float kappa, float decay=0., "
      "Tensor? kappa_tensor=None) -> ()");

  // SAM. backups <- params, params += rho e(grads), e = g / norm or, adaptive, theta^2 g / norm; a norm that is not
  // finite moves nothing.
  m.def(
      "sam_perturb_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] backups, Tensor norm, *, float rho, "
      "bool adaptive=False) -> ()");
  // 1 where any element is infinite or NaN, else 0: what the steps take as found_inf
  m.def("found_nonfinite(Tensor[] tensors) -> Tensor");
  // sqrt(sum x^2), or sqrt(sum (w x)^2) where weights are given
  m.def("global_norm(Tensor[] tensors, Tensor[] weights) -> Tensor");

  // Curvature to mask. `score` says what of a tensor is ranked: "value" x, "abs" |x|, "square" x^2 rounded to float32.
  // h <- beta h + (1 - beta) num_predictions (g / grad_scale)^2
  m.def(
      "hessian_diag_(Tensor(a!)[] hessian_diags, Tensor[] grads, *, float beta, float num_predictions=1., "
      "Tensor? grad_scale=None) -> ()");
  // the k-th smallest score (k from 1) over all tensors; `hint` is a guess at the answer that can only change the time
  m.def("kth_value(Tensor[] tensors, int k, *, str score=\"value\", Tensor? hint=None) -> Tensor");
  // counts[b] = number of ordered keys of scores with (key >> shift >> 11) == prefix and digit (key >> shift) & 2047 =
  // b; at the top, where no bits are left for a prefix, b = 1024 + (key >> shift). Keys of 32 bits in the order of
  // float32, of 64 bits in the order of float64 where `wide` or the score is float64
  m.def(
      "score_histogram(Tensor[] tensors, Tensor prefix, *, int shift, str score=\"value\", bool wide=False) -> Tensor");
  // bit = score is finite and score <= threshold; with k the threshold is the k-th smallest score, which is written to
  // `threshold`, and what was there before is the hint
  m.def(
      "flat_mask_(Tensor(a!)[] flat_masks, Tensor[] scores, Tensor(b!) threshold, *, str score=\"value\", int? k=None) "
      "-> ()");

  // Exact projector. `bases` holds the columns of Q that belong to each tensor, (m, numel) with the same m.
  // gram_inverse = (Q Q^T)^-1 where the rows of Q are not orthonormal.
  // v - Q^T Q v
  m.def("project_out(Tensor[] vectors, Tensor[] bases, Tensor? gram_inverse=None) -> Tensor[]");
  // theta += kappa (I - Q^T Q) (theta - (1 - decay) previous)
  m.def(
      "displacement_projected_(Tensor(a!)[] params, Tensor[] previous, Tensor[] bases, *, float kappa, float decay=0., "
      "Tensor? gram_inverse=None) -> ()");
  // Orthogonalises `product` against the first `count` rows of `basis` twice and writes it, normalised, to the next
  // row, if there is one; returns the `count` coefficients and the norm. A bfloat16 basis goes along a float32 product.
  m.def("lanczos_step_(Tensor(a!) basis, Tensor(b!) product, *, int count) -> Tensor");

  // One label a row from softmax(logits), and the row's logsumexp from the same read.
  m.def("sample_labels(Tensor logits, *, int seed, int offset) -> (Tensor labels, Tensor logsumexp)");
}
