//! A layer's routing on the device: uploaded once, used by every call.

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr};

use super::driver::failed;
use crate::Result;
use crate::routing::LayerRouting;

/// Mask tables and regions of one layer, resident on a device.
pub struct DeviceRouting {
    pub(super) shape: RoutingShape,
    /// Categories that the tables have rows for.
    pub(super) categories: usize,
    /// Route weights, `[categories, regions]`.
    pub(super) route: CudaSlice<f32>,
    /// Flow weights, `[categories, regions]`.
    pub(super) flow: CudaSlice<f32>,
    /// See `GradrouteLayer` in `kernels/include/gradroute.h`.
    pub(super) map: CudaSlice<u32>,
    /// Addresses of the three.
    pub(super) at: [CUdeviceptr; 3],
}

/// Counts that a plan needs of a layer's routing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingShape {
    /// Sides of what the regions divide.
    pub(super) outputs: u32,
    pub(super) features: u32,
    pub(super) regions: u32,
    pub(super) output_spans: u32,
    pub(super) input_spans: u32,
}

impl RoutingShape {
    /// Of a layer's regions.
    pub fn of(layer: &LayerRouting) -> Self {
        let regions = layer.regions();
        Self {
            outputs: regions.outputs() as u32,
            features: regions.inputs() as u32,
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
        let route = upload(stream, layer.route_table())?;
        let flow = upload(stream, layer.flow_table())?;
        let map = upload(stream, &map(layer))?;
        let at = [route.device_ptr(stream).0, flow.device_ptr(stream).0, map.device_ptr(stream).0];
        let (shape, categories) = (RoutingShape::of(layer), layer.categories());
        Ok(Self { shape, categories, route, flow, map, at })
    }
}

/// A copy on the device; of one number where there is none, since the driver has no empty buffers.
pub(crate) fn upload<T: DeviceRepr + Default>(
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
        let sides = RoutingShape { outputs: 5, features: 6, ..RoutingShape::default() };
        let shape = RoutingShape { regions: 3, output_spans: 2, input_spans: 2, ..sides };
        assert_eq!(RoutingShape::of(&layer), shape);
    }
}
