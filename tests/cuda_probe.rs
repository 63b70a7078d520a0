//! On a device: do both compilers agree on the kernels' parameters?

use gradroute::{Error, cuda};

mod device;

#[test]
fn device_agrees_on_the_abi() {
    if device::present() {
        cuda::Device::open(0).unwrap().check_abi().unwrap();
    }
}

#[test]
fn what_is_missing_is_named() {
    let Err(error) = cuda::device_available() else { return };
    let expected = if cuda::architectures().is_empty() {
        matches!(error, Error::KernelsNotBuilt)
    } else if cuda::driver_present().is_err() {
        matches!(error, Error::DriverMissing { .. })
    } else {
        matches!(error, Error::Driver { .. })
    };
    assert!(expected, "{error}");
    let opened = cuda::Device::open(0).err().map(|error| error.to_string());
    assert_eq!(opened, Some(error.to_string()));
}
