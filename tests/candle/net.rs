//! A small network under a policy, and the same by candle's own ops.

use candle_core::{Module, Result, Tensor};
use gradroute::candle::{
    Parameters, Recorder, RoutedConv2d, RoutedGroupNorm, RoutedLinear, Scope, silu,
};
use gradroute::problem::Conv2dSpec;
use gradroute::routing::{Categories, CompiledPolicy, Policy};

use crate::support::*;

/// Two convolutions with a region between them, and a head.
pub struct Net {
    conv1: RoutedConv2d,
    norm2: RoutedGroupNorm,
    conv2: RoutedConv2d,
    head: RoutedLinear,
}

pub const POLICY: &str = r#"
    [[block]]
    name = "body"
    layers = "{conv1,norm2,conv2}"
    [[block]]
    name = "head"
    layers = "head"
    [[region]]
    name = "script"
    owner = "style/script"
    switch = "strict"
    parts = [{ layers = "conv1", outputs = "-2.." }]
    [[profile]]
    category = "style/serif"
    blocks.body = { route = 0.5, flow = 0.25 }
    [[profile]]
    category = "style/script"
    route = 0.0
    blocks.head = { route = -2.0 }
"#;

impl Net {
    pub fn new(scope: &Scope) -> Self {
        let spec = Conv2dSpec { in_channels: 3, out_channels: 6, bias: true, ..spec3() };
        let conv1 = RoutedConv2d::new(spec, &scope.at("conv1")).unwrap();
        let norm2 = RoutedGroupNorm::new(3, 6, 1e-5, &scope.at("norm2").reads("conv1")).unwrap();
        let spec = Conv2dSpec { in_channels: 6, out_channels: 2, bias: false, ..spec3() };
        let conv2 = RoutedConv2d::new(spec, &scope.at("conv2").reads("norm2")).unwrap();
        let head = RoutedLinear::new(2 * 16, 3, true, &scope.at("head")).unwrap();
        Self { conv1, norm2, conv2, head }
    }

    pub fn governed() -> (Recorder, Parameters, Self, CompiledPolicy) {
        let (recorder, parameters, scope) = fresh();
        let net = Self::new(&scope);
        let policy = Self::policy(&recorder, POLICY);
        recorder.govern(&policy).unwrap();
        (recorder, parameters, net, policy)
    }

    pub fn policy(recorder: &Recorder, toml: &str) -> CompiledPolicy {
        let categories = Categories::new(["style/serif", "style/script"]).unwrap();
        let policy = Policy::from_toml(toml).unwrap();
        policy.compile(&recorder.layout().unwrap(), &categories).unwrap()
    }

    pub fn loss(&self, recorder: &Recorder, x: &Tensor) -> Result<Tensor> {
        let h = silu(&self.norm2.forward(&self.conv1.forward(x)?)?)?;
        let h = self.conv2.forward(&recorder.switch(&h, "conv2")?)?;
        loss(&self.head.forward(&h.flatten_from(1)?)?)
    }

    /// The same for one sample, by candle's ops. Gradients through a layer of flow weight `f`
    /// are multiplied by it.
    pub fn plain(&self, x: &Tensor, on: f64, flow: f64) -> Result<Tensor> {
        let through = |x: &Tensor| (x * flow)? + (x.detach() * (1.0 - flow))?;
        let conv = |x: &Tensor, layer: &RoutedConv2d| x.conv2d(layer.weight(), 1, 1, 1, 1);
        let shape = (1, 6, 1, 1);
        let h = conv(x, &self.conv1)?.broadcast_add(&self.conv1.bias().unwrap().reshape(shape)?)?;
        let h = plain_norm(&through(&h)?.reshape((1, 3, 2, 4, 4))?, 2, true)?;
        let h = h.reshape((1, 6, 4, 4))?.broadcast_mul(&self.norm2.weight().reshape(shape)?)?;
        let h = h.broadcast_add(&self.norm2.bias().unwrap().reshape(shape)?)?.silu()?;
        let (open, owned) = (h.narrow(1, 0, 4)?, (h.narrow(1, 4, 2)? * on)?);
        let h = conv(&through(&Tensor::cat(&[open, owned], 1)?)?, &self.conv2)?;
        let y = h.flatten_from(1)?.matmul(&self.head.weight().t()?)?;
        loss(&y.broadcast_add(self.head.bias().unwrap())?)
    }
}

/// Each sample's own gradients: `[sample][parameter]`.
pub fn materialised(
    net: &Net,
    parameters: &Parameters,
    x: &Tensor,
    on: &[f64],
    flow: &[f64],
) -> Vec<Vec<Vec<f32>>> {
    let sample = |n: usize| {
        let x = x.narrow(0, n, 1).unwrap();
        let grads = net.plain(&x, on[n], flow[n]).unwrap().backward().unwrap();
        parameters.all().iter().map(|(_, var)| flat(grads.get(var).unwrap())).collect()
    };
    (0..x.dims()[0]).map(sample).collect()
}

/// The gradient matrix of a layer, bias last, `[outputs, columns]`, channels last.
pub fn matrix(net_layer: usize, gradients: &[Vec<f32>]) -> (usize, usize, Vec<f32>) {
    // Weight, outputs, channels, taps, bias of conv1, norm2, conv2, head.
    let (w, o, c, t, b) =
        [(0, 6, 3, 9, Some(1)), (2, 6, 1, 1, Some(3)), (4, 2, 6, 9, None), (5, 3, 32, 1, Some(6))]
            [net_layer];
    let columns = c * t + usize::from(b.is_some());
    let mut all = vec![0.0; o * columns];
    for (row, out) in all.chunks_exact_mut(columns).enumerate() {
        for channel in 0..c {
            for tap in 0..t {
                out[tap * c + channel] = gradients[w][(row * c + channel) * t + tap];
            }
        }
        if let Some(b) = b {
            out[c * t] = gradients[b][row];
        }
    }
    (o, columns, all)
}

/// Region of each column of a layer's matrix.
pub fn weight_at(policy: &CompiledPolicy, layer: usize, o: usize, i: usize, category: u32) -> f32 {
    let (routing, spec) = (&policy.layers()[layer], &policy.layout().layers()[layer]);
    let region = match i < spec.features * spec.taps {
        true => routing.regions().region_at(o, i % spec.features),
        false => routing.regions().bias_region_at(o),
    };
    routing.route(category, region)
}
