//! The op suite: the reference against an independent oracle, and every backend against both.
//!
//! A case is a function generic over the backend; `suite!` turns all of them into tests of one
//! backend.

#[path = "../device/mod.rs"]
mod device;
#[path = "../support/mod.rs"]
mod support;

mod arguments;
mod autograd;
mod channels_last;
mod close;
mod cuda;
mod exact;
mod properties;
mod reference;
mod selection;

/// Every case as a test of the backend that `$make` makes.
/// `$ready` says whether there is such a backend.
macro_rules! suite {
    ($backend:ident, $ready:expr, $make:expr) => {
        mod $backend {
            use half::{bf16, f16};

            use crate::{arguments, autograd, close, exact, properties, selection};

            tests! { $ready, $make,
                exact_f32: exact::every_op::<_, f32>,
                exact_bf16: exact::every_op::<_, bf16>,
                exact_f16: exact::every_op::<_, f16>,
                exact_small_f32: exact::small_sizes::<_, f32>,
                exact_small_bf16: exact::small_sizes::<_, bf16>,
                exact_single_rows: exact::single_rows,
                close_f32: close::every_op,
                close_small: close::small_sizes,
                close_bf16: close::half_precision::<_, bf16>,
                close_f16: close::half_precision::<_, f16>,
                agrees_with_autograd: autograd::agrees,
                linear_in_the_weights: properties::linear_in_the_weights,
                mixed_batch_is_the_sum: properties::mixed_batch_is_the_sum,
                weight_zero_is_absence: properties::weight_zero_is_absence,
                same_bits_on_repeat: properties::same_bits_on_repeat,
                frozen_beside_a_branch: properties::frozen_beside_a_branch,
                alone_as_together: properties::alone_as_together,
                nan_is_selected_f32: selection::routed_away_samples::<_, f32>,
                nan_is_selected_bf16: selection::routed_away_samples::<_, bf16>,
                nan_stays_out_of_owned_regions: selection::owned_regions,
                one_factor_alone_f32: selection::one_factor_alone::<_, f32>,
                one_factor_alone_bf16: selection::one_factor_alone::<_, bf16>,
                nothing_to_add_changes_nothing: selection::nothing_to_add,
                wrong_inputs_are_named: arguments::wrong_inputs,
                wrong_outputs_are_named: arguments::wrong_outputs,
                wrong_routing_is_named: arguments::wrong_routing,
            }

            #[test]
            #[ignore = "takes a minute"]
            fn close_large() {
                if $ready() {
                    close::large($make);
                }
            }
        }
    };
}

macro_rules! tests {
    ($ready:expr, $make:expr, $($name:ident: $case:expr),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                if $ready() {
                    $case($make);
                }
            }
        )*
    };
}

suite!(reference_backend, || true, || gradroute::reference::Reference);
suite!(cpu_backend, || true, gradroute::cpu::Cpu::new);
suite!(cuda_backend, crate::cuda::present, crate::cuda::open);

/// Convolutions whose channels come last already.
mod cuda_channels_last {
    use half::{bf16, f16};

    use crate::cuda::{open_last, present};
    use crate::{close, exact};

    tests! { present, open_last,
        exact_f32: exact::every_op::<_, f32>,
        exact_bf16: exact::every_op::<_, bf16>,
        close_f16: close::half_precision::<_, f16>,
    }
}

/// As on a device so small that one block takes all samples of a tile.
mod cuda_unsplit {
    use half::bf16;

    use crate::cuda::{open_small, present};
    use crate::{exact, selection};

    tests! { present, open_small,
        exact_bf16: exact::every_op::<_, bf16>,
        exact_small_f32: exact::small_sizes::<_, f32>,
        nan_is_selected_bf16: selection::routed_away_samples::<_, bf16>,
    }
}

/// Linear layers of few rows, formed all the same.
mod cuda_formed {
    use half::bf16;

    use crate::cuda::{open_formed, present};
    use crate::{exact, selection};

    tests! { present, open_formed,
        exact_bf16: exact::every_op::<_, bf16>,
        nan_is_selected_bf16: selection::routed_away_samples::<_, bf16>,
    }
}

/// `dW` as one product over all rows wherever it is possible, by one block a tile.
mod cuda_factored {
    use half::{bf16, f16};

    use crate::cuda::{open_factored, present};
    use crate::{close, exact, properties, selection};

    tests! { present, open_factored,
        exact_bf16: exact::every_op::<_, bf16>,
        close_f16: close::half_precision::<_, f16>,
        alone_as_together: properties::alone_as_together,
        nan_stays_out_of_owned_regions: selection::owned_regions,
    }
}
