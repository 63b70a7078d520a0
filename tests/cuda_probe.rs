//! On a device: do both compilers agree on the kernels' parameters?

use gradroute::{Error, cuda};

/// Whether the device test must not be skipped, because a device was promised.
fn device_required() -> bool {
    std::env::var("GRADROUTE_REQUIRE_GPU").is_ok_and(|value| value == "1")
}

#[test]
fn device_agrees_on_the_abi() {
    match cuda::device_available() {
        Ok(()) => cuda::Device::open(0).unwrap().check_abi().unwrap(),
        Err(error) if device_required() => panic!("a device was promised: {error}"),
        Err(error) => println!("skipped: {error}"),
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
