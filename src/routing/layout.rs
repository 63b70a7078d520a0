//! The model as a policy sees it: its layers in forward order and what reads what.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::problem::NormKind;
use crate::{Error, Result};

/// What a layer does with its input features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Every output reads every input.
    Linear,
    /// Every output channel reads the input channels of its group.
    Conv2d {
        /// Channel groups.
        groups: usize,
    },
    /// Feature by feature, after a normalisation that may mix them.
    Norm(NormKind),
    /// A table row per token.
    Embedding,
}

/// One layer: a name, and the shape of its gradient ([`crate::problem::GradientShape`]).
///
/// ```
/// use gradroute::problem::NormKind;
/// use gradroute::routing::{LayerSpec, ModelLayout};
/// let layout = ModelLayout::new(vec![
///     LayerSpec::conv2d("conv1", 8, 48, [3, 3], 1, true),
///     LayerSpec::norm("norm2", NormKind::Group { groups: 3 }, 48, true).reading("conv1"),
///     LayerSpec::conv2d("conv2", 48, 8, [3, 3], 1, true).reading("norm2"),
/// ])?;
/// assert_eq!(layout.layers()[0].parameters(), 48 * 8 * 9 + 48);
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// Name, such as `down.0.conv1`.
    pub path: String,
    /// What it does.
    pub kind: LayerKind,
    /// Output features; for an embedding the width of a row.
    pub outputs: usize,
    /// Input features of the gradient matrix: for a convolution the channels **per group**, for
    /// a normalisation 1, for an embedding the vocabulary.
    pub features: usize,
    /// Kernel positions, 1 for all but convolutions.
    pub taps: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// The layers whose output features, added up where there are several, this layer takes as
    /// its input features, one for one, with nothing in between that mixes features
    /// (activations and resampling do not). A region of their outputs is carried to this layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<String>,
}

impl LayerSpec {
    /// A linear layer `W [outputs, inputs]`.
    pub fn linear(path: impl Into<String>, inputs: usize, outputs: usize, bias: bool) -> Self {
        Self::of(path, LayerKind::Linear, outputs, inputs, bias)
    }

    /// A convolution `W [out_channels, in_channels / groups, kh, kw]`. Channels that the groups
    /// do not divide are refused by [`ModelLayout::new`].
    pub fn conv2d(
        path: impl Into<String>,
        in_channels: usize,
        out_channels: usize,
        kernel: [usize; 2],
        groups: usize,
        bias: bool,
    ) -> Self {
        // An uneven division leaves no features, which the layout refuses.
        let even = groups > 0 && in_channels.is_multiple_of(groups);
        let features = if even { in_channels / groups } else { 0 };
        let taps = kernel[0] * kernel[1];
        Self { taps, ..Self::of(path, LayerKind::Conv2d { groups }, out_channels, features, bias) }
    }

    /// A normalisation of `features` features or channels; `bias` is its `β`.
    pub fn norm(path: impl Into<String>, kind: NormKind, features: usize, bias: bool) -> Self {
        Self::of(path, LayerKind::Norm(kind), features, 1, bias)
    }

    /// A table of `vocabulary` rows, `features` wide.
    pub fn embedding(path: impl Into<String>, vocabulary: usize, features: usize) -> Self {
        Self::of(path, LayerKind::Embedding, features, vocabulary, false)
    }

    /// Adds to [`LayerSpec::reads`].
    pub fn reading(mut self, path: impl Into<String>) -> Self {
        self.reads.push(path.into());
        self
    }

    /// Numbers of the weight and the bias.
    pub fn parameters(&self) -> usize {
        self.outputs * (self.features * self.taps + usize::from(self.bias))
    }

    /// Features of the activation the layer reads: none for an embedding, which reads tokens.
    pub fn input_width(&self) -> Option<usize> {
        match self.kind {
            LayerKind::Linear => Some(self.features),
            LayerKind::Conv2d { groups } => Some(self.features * groups),
            LayerKind::Norm(_) => Some(self.outputs),
            LayerKind::Embedding => None,
        }
    }

    fn of(
        path: impl Into<String>,
        kind: LayerKind,
        outputs: usize,
        features: usize,
        bias: bool,
    ) -> Self {
        Self { path: path.into(), kind, outputs, features, taps: 1, bias, reads: Vec::new() }
    }
}

/// The layers of a model in forward order, each path once, each reading an earlier one.
///
/// Serializes with serde, as a list of its layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<LayerSpec>", into = "Vec<LayerSpec>")]
pub struct ModelLayout {
    layers: Vec<LayerSpec>,
    indices: HashMap<String, usize>,
}

impl ModelLayout {
    /// # Errors
    /// [`Error::Argument`] naming the layer by its path: an empty or repeated path, groups that
    /// do not divide the channels, a layer that reads one that is not before it or whose width
    /// differs from its own input's.
    pub fn new(layers: Vec<LayerSpec>) -> Result<Self> {
        let mut layout = Self { layers: Vec::with_capacity(layers.len()), indices: HashMap::new() };
        for layer in layers {
            layout.check(&layer)?;
            layout.indices.insert(layer.path.clone(), layout.layers.len());
            layout.layers.push(layer);
        }
        Ok(layout)
    }

    /// The layers, in forward order.
    pub fn layers(&self) -> &[LayerSpec] {
        &self.layers
    }

    /// Index of the layer with this path.
    pub fn index(&self, path: &str) -> Option<usize> {
        self.indices.get(path).copied()
    }

    fn check(&self, layer: &LayerSpec) -> Result<()> {
        let place = format!("layer {}", layer.path);
        if layer.path.is_empty() || self.index(&layer.path).is_some() {
            let expected = "a path that no earlier layer has";
            return Err(Error::argument("layers", expected, format!("{:?}", layer.path)));
        }
        let groups = match layer.kind {
            LayerKind::Conv2d { groups } | LayerKind::Norm(NormKind::Group { groups }) => groups,
            _ => 1,
        };
        let uneven = matches!(layer.kind, LayerKind::Conv2d { .. }) && layer.features == 0;
        if groups == 0 || !layer.outputs.is_multiple_of(groups) || uneven {
            return Err(Error::argument(place, "groups that divide its channels", groups));
        }
        for reads in &layer.reads {
            let Some(source) = self.index(reads) else {
                return Err(Error::argument(place, "to read an earlier layer", reads));
            };
            let width = self.layers[source].outputs;
            if layer.input_width() != Some(width) {
                let expected = format!("an input of the {width} features of {reads}");
                let given = layer.input_width().map_or("tokens".into(), |width| width.to_string());
                return Err(Error::argument(place, expected, given));
            }
        }
        Ok(())
    }
}

impl TryFrom<Vec<LayerSpec>> for ModelLayout {
    type Error = Error;

    fn try_from(layers: Vec<LayerSpec>) -> Result<Self> {
        Self::new(layers)
    }
}

impl From<ModelLayout> for Vec<LayerSpec> {
    fn from(layout: ModelLayout) -> Self {
        layout.layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_name_the_layer() {
        let conv = |path: &str, groups| LayerSpec::conv2d(path, 6, 8, [3, 3], groups, false);
        let text =
            |layers: &[LayerSpec]| ModelLayout::new(layers.to_vec()).unwrap_err().to_string();
        assert!(text(&[conv("a", 1), conv("a", 1)]).contains("\"a\""));
        assert!(text(&[conv("a", 4)]).contains("layer a"), "6 inputs in 4 groups");
        assert!(text(&[conv("a", 3)]).contains("layer a"), "8 outputs in 3 groups");
        assert!(text(&[conv("a", 1).reading("b")]).contains("earlier layer"));
        assert!(text(&[conv("a", 1), conv("b", 1).reading("a")]).contains("8 features of a"));
        let table = LayerSpec::embedding("c", 9, 4).reading("a");
        assert!(text(&[conv("a", 1), table]).contains("tokens"));
    }

    #[test]
    fn a_layout_survives_json_and_is_checked_again() {
        let layout = ModelLayout::new(vec![
            LayerSpec::conv2d("a", 6, 8, [3, 1], 2, true),
            LayerSpec::norm("b", NormKind::Group { groups: 2 }, 8, true).reading("a"),
            LayerSpec::norm("c", NormKind::Rms, 8, false).reading("b"),
            LayerSpec::embedding("d", 9, 4),
        ])
        .unwrap();
        let text = serde_json::to_string(&layout).unwrap();
        assert_eq!(serde_json::from_str::<ModelLayout>(&text).unwrap(), layout);
        let wrong = serde_json::from_str::<ModelLayout>(&text.replace("\"b\"", "\"a\""));
        assert!(wrong.unwrap_err().to_string().contains("no earlier layer"), "{text}");
    }

    #[test]
    fn grouped_convolutions_count_features_per_group() {
        let layer = LayerSpec::conv2d("a", 6, 8, [3, 1], 2, true);
        assert_eq!((layer.features, layer.input_width()), (3, Some(6)));
        assert_eq!(layer.parameters(), 8 * 3 * 3 + 8);
    }
}
