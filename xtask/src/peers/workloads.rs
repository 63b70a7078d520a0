//! `xtask/peers/workloads.toml`: what is run.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

const TEXT: &str = include_str!("../../peers/workloads.toml");

/// What a workload is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Small nets.
    Net,
    /// Stable Diffusion's layers.
    Layer,
    /// A whole model, trained for some steps as well.
    Model,
    /// Tiny ones.
    Quick,
    /// A kind of layer whose norms are compared with the truth.
    Kind,
}

/// A workload: what this task knows of it, and all of it as it is handed on.
#[derive(Clone, Debug)]
pub struct Workload {
    pub name: String,
    pub group: Group,
    /// Whether it is the example's model.
    pub trains: bool,
    pub whole: Value,
}

/// All of them.
pub fn read() -> Result<Vec<Workload>> {
    parse(TEXT).context("xtask/peers/workloads.toml")
}

fn parse(text: &str) -> Result<Vec<Workload>> {
    #[derive(Deserialize)]
    struct File {
        workload: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Head {
        name: String,
        group: Group,
        layers: Vec<Kind>,
    }
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    let each = toml::from_str::<File>(text)?.workload.into_iter();
    each.map(|whole| {
        let Head { name, group, layers } = serde_json::from_value(whole.clone())?;
        let trains = layers.iter().any(|layer| layer.kind == "glyph_unet");
        Ok(Workload { name, group, trains, whole })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_whole() {
        let all = read().unwrap();
        let count = |group| all.iter().filter(|w| w.group == group).count();
        assert_eq!(count(Group::Net), 3);
        assert!(count(Group::Layer) >= 10 && count(Group::Kind) >= 14);
        assert_eq!(all.iter().filter(|w| w.group == Group::Model && w.trains).count(), 1);
        let mut names: Vec<_> = all.iter().map(|w| &w.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "names are told apart");
    }

    #[test]
    fn an_unknown_group_is_refused() {
        let text = "[[workload]]\nname='a'\ngroup='other'\nlayers=[]";
        assert!(parse(text).is_err());
    }
}
