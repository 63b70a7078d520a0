//! Who takes part, and what each takes of a sample.

use anyhow::{Result, ensure};

use super::workloads::Group;

/// Whose program runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `benches/peers`.
    Ours,
    /// `xtask/peers/worker.py`.
    Python,
}

/// One way to run a workload.
#[derive(Clone, Copy, Debug)]
pub struct Participant {
    pub name: &'static str,
    /// Name in the requests.
    pub method: &'static str,
    pub side: Side,
    /// Package whose version the table states.
    pub package: Option<&'static str>,
    /// Whether it takes nothing, and others are measured against it.
    pub plain: bool,
    /// What is taken beside the parameters' gradients.
    pub takes: &'static str,
    /// Whether its norms can be compared with the truth.
    pub checked: bool,
}

/// Methods of our ops alone begin so, and the plain one is this.
const BARE: &str = "bare";

const ALL: [Participant; 11] = [
    Participant {
        name: "gradroute, plain",
        method: "plain",
        side: Side::Ours,
        package: None,
        plain: true,
        takes: "nothing",
        checked: false,
    },
    Participant {
        name: "gradroute, plain ops",
        method: BARE,
        side: Side::Ours,
        package: None,
        plain: false,
        takes: "nothing, by the ops alone, without candle: single layers",
        checked: false,
    },
    Participant {
        name: "gradroute, two-sided ops",
        method: "bare_two_sided",
        side: Side::Ours,
        package: None,
        plain: false,
        takes: "exact norms, 16×16 two-sided sketch, by the ops alone and over their plain pass",
        checked: false,
    },
    Participant {
        name: "gradroute, two-sided",
        method: "two_sided",
        side: Side::Ours,
        package: None,
        plain: false,
        takes: "exact norms, 16×16 two-sided sketch",
        checked: true,
    },
    Participant {
        name: "gradroute, count",
        method: "count",
        side: Side::Ours,
        package: None,
        plain: false,
        takes: "exact norms, count sketch of 256",
        checked: false,
    },
    peer("PyTorch, plain", "plain", "torch", "nothing"),
    peer("Bergson", "bergson", "bergson", "16×16 two-sided sketch, no norms"),
    peer(
        "dattri-LLM",
        "dattri",
        "dattri-llm",
        "exact norms, 16×16 two-sided sketch of its factors",
    ),
    Participant {
        checked: false,
        ..peer(
            "dattri-LLM, sketch",
            "dattri_sketch",
            "dattri-llm",
            "16×16 two-sided sketch, no norms",
        )
    },
    peer(
        "Opacus",
        "opacus",
        "opacus",
        "per-sample gradients; norms and 16×16 sketch of them by us",
    ),
    peer(
        "BackPACK",
        "backpack",
        "backpack-for-pytorch",
        "per-sample gradients; norms and 16×16 sketch of them by us",
    ),
];

/// TRAK comes last: it is the slowest.
const TRAK: Participant = peer(
    "TRAK",
    "trak",
    "traker",
    "per-sample gradients, one projection to 256 by its `BasicProjector` (fast_jl needs CUDA)",
);

const fn peer(
    name: &'static str,
    method: &'static str,
    package: &'static str,
    takes: &'static str,
) -> Participant {
    // A string cannot be compared in a constant; the one that takes nothing has a short text.
    let plain = takes.len() == "nothing".len();
    let side = Side::Python;
    Participant { name, method, side, package: Some(package), plain, takes, checked: !plain }
}

impl Participant {
    /// Whether it is done with workloads of a group before long: TRAK takes dozens of times as long as
    /// PyTorch's pass on the small nets.
    pub fn in_time(&self, group: Group) -> bool {
        self.method != TRAK.method || !matches!(group, Group::Layer | Group::Model)
    }

    /// Whether it is ours with modules, which run every workload.
    pub fn has_modules(&self) -> bool {
        self.side == Side::Ours && !self.method.starts_with(BARE)
    }

    /// The plain pass it is measured over: of its own side, of recording ops the plain ops.
    pub fn base(&self, all: &[Participant]) -> usize {
        let ops = self.method != BARE && self.method.starts_with(BARE);
        let own = |other: &Participant| match ops {
            true => other.method == BARE,
            false => other.plain && other.side == self.side,
        };
        all.iter().position(own).expect("plain passes always take part")
    }
}

/// All, or the plain ones, ours and those peers whose names hold a word, whatever its case.
pub fn chosen(words: &[String]) -> Result<Vec<Participant>> {
    let all = ALL.into_iter().chain([TRAK]);
    let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
    let named = |peer: &Participant| {
        let name = peer.name.to_lowercase();
        words.iter().any(|word| name.contains(word))
    };
    let always = |p: &Participant| p.plain || p.side == Side::Ours;
    for word in &words {
        let found = all.clone().any(|peer| peer.name.to_lowercase().contains(word));
        ensure!(found, "--only {word}: no peer is named like it");
    }
    Ok(all.filter(|p| words.is_empty() || always(p) || named(p)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_leaves_the_plain_passes_ours_and_the_named() {
        let names = |words: &[&str]| -> Vec<&str> {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            chosen(&words).unwrap().iter().map(|peer| peer.name).collect()
        };
        assert_eq!(names(&[]).len(), 12);
        let some = names(&["bergson", "trak"]);
        assert_eq!(some[5..], ["PyTorch, plain", "Bergson", "TRAK"]);
        assert!(chosen(&["nobody".to_owned()]).is_err());
    }

    #[test]
    fn everybody_has_a_plain_pass_of_its_side() {
        let all = chosen(&[]).unwrap();
        for peer in &all {
            let base = &all[peer.base(&all)];
            assert!(base.side == peer.side, "{}", peer.name);
            assert!(base.plain != (peer.method == "bare_two_sided"), "{}", peer.name);
        }
        assert_eq!(all.iter().filter(|peer| peer.plain).count(), 2);
    }
}
