//! A layer's routing on the device: uploaded once, used by every call.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};

use super::driver::failed;
use crate::Result;
use crate::routing::LayerRouting;

/// Mask tables and regions of one layer, resident on a device.
pub struct DeviceRouting {
    pub(super) shape: RoutingShape,
    /// Route weights, `[categories, regions]`.
    pub(super) route: CudaSlice<f32>,
    /// Flow weights, `[categories, regions]`.
    pub(super) flow: CudaSlice<f32>,
    /// See `GradrouteLayer` in `kernels/include/gradroute.h`.
    pub(super) map: CudaSlice<u32>,
}

/// Counts that a plan needs of a layer's routing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingShape {
    pub(super) regions: u32,
    pub(super) output_spans: u32,
    pub(super) input_spans: u32,
}

impl RoutingShape {
    /// Of a layer's regions.
    pub fn of(layer: &LayerRouting) -> Self {
        let regions = layer.regions();
        Self {
            regions: regions.len() as u32,
            output_spans: regions.bias_tiles().len() as u32,
            input_spans: regions.input_spans().len() as u32,
        }
    }
}

impl DeviceRouting {
    /// Copies a layer's tables and regions to the stream's device.
    ///
    /// # Errors
    /// [`crate::Error::Driver`].
    pub fn upload(stream: &Arc<CudaStream>, layer: &LayerRouting) -> Result<Self> {
        Ok(Self {
            shape: RoutingShape::of(layer),
            route: upload(stream, layer.route_table())?,
            flow: upload(stream, layer.flow_table())?,
            map: upload(stream, &map(layer))?,
        })
    }
}

/// A copy on the device; of one number where there is none, since the driver has no empty buffers.
pub(super) fn upload<T: DeviceRepr + Default>(
    stream: &Arc<CudaStream>,
    values: &[T],
) -> Result<CudaSlice<T>> {
    let copied = match values {
        [] => stream.clone_htod(&[T::default()]),
        values => stream.clone_htod(values),
    };
    copied.map_err(|error| failed("cuMemcpyHtoD", error))
}

/// The words of the map of regions.
fn map(layer: &LayerRouting) -> Vec<u32> {
    let regions = layer.regions();
    let (outputs, inputs) = (regions.bias_tiles(), regions.input_spans());
    let ends = outputs.iter().chain(inputs).map(|(range, _)| range.end as u32);
    let sides = outputs.iter().chain(inputs).map(|&(_, region)| region as u32);
    let tiles = regions.tiles().iter().map(|tile| tile.region as u32);
    ends.chain(sides).chain(tiles).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Region, RegionMap};

    #[test]
    fn the_map_is_as_the_header_says() {
        // 5 outputs, 6 inputs; outputs 3.. are one region, the first two inputs of the others another.
        let owned =
            vec![Region { outputs: 3..5, inputs: 0..6 }, Region { outputs: 0..3, inputs: 0..2 }];
        let layer = LayerRouting::open(RegionMap::new(5, 6, owned).unwrap(), 1);
        let [ends, bias, flow, weights] =
            [[3, 5, 2, 6].as_slice(), &[0, 1], &[0, 0], &[2, 0, 1, 1]];
        assert_eq!(map(&layer), [ends, bias, flow, weights].concat());
        let shape = RoutingShape { regions: 3, output_spans: 2, input_spans: 2 };
        assert_eq!(RoutingShape::of(&layer), shape);
    }
}
