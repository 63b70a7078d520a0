//! Result codes of the C API with their names and meanings.

use std::ffi::CStr;

/// A result code as C sees it; 0 is success.
pub type Status = i32;
pub const SUCCESS: Status = 0;

macro_rules! codes {
    ($($variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// Every error code that CUDA 13.2 defines.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(dead_code, reason = "softcuda doesn't return all of them, but knows their names")]
        pub enum Error { $($variant = $number,)* }

        /// Name and meaning of a result code.
        pub fn describe(status: Status) -> Option<(&'static CStr, &'static CStr)> {
            let (name, text) = match status {
                SUCCESS => ("CUDA_SUCCESS\0", "no error\0"),
                $($number => (concat!($name, "\0"), concat!($text, "\0")),)*
                _ => return None,
            };
            let c = |text: &'static str| CStr::from_bytes_with_nul(text.as_bytes()).ok();
            Some((c(name)?, c(text)?))
        }
    };
}

codes! {
    InvalidValue = 1, "CUDA_ERROR_INVALID_VALUE", "invalid argument";
    OutOfMemory = 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory";
    NotInitialized = 3, "CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called";
    Deinitialized = 4, "CUDA_ERROR_DEINITIALIZED", "deinitialized";
    ProfilerDisabled = 5, "CUDA_ERROR_PROFILER_DISABLED", "profiler disabled";
    ProfilerNotInitialized = 6, "CUDA_ERROR_PROFILER_NOT_INITIALIZED", "profiler not initialized";
    ProfilerAlreadyStarted = 7, "CUDA_ERROR_PROFILER_ALREADY_STARTED", "profiler already started";
    ProfilerAlreadyStopped = 8, "CUDA_ERROR_PROFILER_ALREADY_STOPPED", "profiler already stopped";
    StubLibrary = 34, "CUDA_ERROR_STUB_LIBRARY", "stub library";
    CallRequiresNewerDriver = 36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "call requires newer driver";
    DeviceUnavailable = 46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "device unavailable";
    NoDevice = 100, "CUDA_ERROR_NO_DEVICE", "no device";
    InvalidDevice = 101, "CUDA_ERROR_INVALID_DEVICE", "no such device";
    DeviceNotLicensed = 102, "CUDA_ERROR_DEVICE_NOT_LICENSED", "device not licensed";
    InvalidImage = 200, "CUDA_ERROR_INVALID_IMAGE", "not a module";
    InvalidContext = 201, "CUDA_ERROR_INVALID_CONTEXT", "no such context, or none current";
    ContextAlreadyCurrent = 202, "CUDA_ERROR_CONTEXT_ALREADY_CURRENT", "context already current";
    MapFailed = 205, "CUDA_ERROR_MAP_FAILED", "map failed";
    UnmapFailed = 206, "CUDA_ERROR_UNMAP_FAILED", "unmap failed";
    ArrayIsMapped = 207, "CUDA_ERROR_ARRAY_IS_MAPPED", "array is mapped";
    AlreadyMapped = 208, "CUDA_ERROR_ALREADY_MAPPED", "already mapped";
    NoBinaryForGpu = 209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no code for this device";
    AlreadyAcquired = 210, "CUDA_ERROR_ALREADY_ACQUIRED", "already acquired";
    NotMapped = 211, "CUDA_ERROR_NOT_MAPPED", "not mapped";
    NotMappedAsArray = 212, "CUDA_ERROR_NOT_MAPPED_AS_ARRAY", "not mapped as array";
    NotMappedAsPointer = 213, "CUDA_ERROR_NOT_MAPPED_AS_POINTER", "not mapped as pointer";
    EccUncorrectable = 214, "CUDA_ERROR_ECC_UNCORRECTABLE", "ecc uncorrectable";
    UnsupportedLimit = 215, "CUDA_ERROR_UNSUPPORTED_LIMIT", "unsupported limit";
    ContextAlreadyInUse = 216, "CUDA_ERROR_CONTEXT_ALREADY_IN_USE", "context already in use";
    PeerAccessUnsupported = 217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access unsupported";
    InvalidPtx = 218, "CUDA_ERROR_INVALID_PTX", "PTX that cannot be executed";
    InvalidGraphicsContext = 219, "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT", "invalid graphics context";
    NvlinkUncorrectable = 220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "nvlink uncorrectable";
    JitCompilerNotFound = 221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "jit compiler not found";
    UnsupportedPtxVersion = 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "unsupported ptx version";
    JitCompilationDisabled = 223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "jit compilation disabled";
    UnsupportedExecAffinity = 224, "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY", "unsupported exec affinity";
    UnsupportedDevsideSync = 225, "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC", "unsupported devside sync";
    Contained = 226, "CUDA_ERROR_CONTAINED", "contained";
    InvalidSource = 300, "CUDA_ERROR_INVALID_SOURCE", "invalid source";
    FileNotFound = 301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found";
    SharedObjectSymbolNotFound = 302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "shared object symbol not found";
    SharedObjectInitFailed = 303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "shared object init failed";
    OperatingSystem = 304, "CUDA_ERROR_OPERATING_SYSTEM", "operating system";
    InvalidHandle = 400, "CUDA_ERROR_INVALID_HANDLE", "no such object";
    IllegalState = 401, "CUDA_ERROR_ILLEGAL_STATE", "illegal state";
    LossyQuery = 402, "CUDA_ERROR_LOSSY_QUERY", "lossy query";
    NotFound = 500, "CUDA_ERROR_NOT_FOUND", "no such name";
    NotReady = 600, "CUDA_ERROR_NOT_READY", "work not finished";
    IllegalAddress = 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel accessed memory it may not";
    LaunchOutOfResources = 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "the launch needs more resources than there are";
    LaunchTimeout = 702, "CUDA_ERROR_LAUNCH_TIMEOUT", "launch timeout";
    LaunchIncompatibleTexturing = 703, "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING", "launch incompatible texturing";
    PeerAccessAlreadyEnabled = 704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access already enabled";
    PeerAccessNotEnabled = 705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access not enabled";
    PrimaryContextActive = 708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "primary context active";
    ContextIsDestroyed = 709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed";
    Assert = 710, "CUDA_ERROR_ASSERT", "an assertion in a kernel failed";
    TooManyPeers = 711, "CUDA_ERROR_TOO_MANY_PEERS", "too many peers";
    HostMemoryAlreadyRegistered = 712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "host memory already registered";
    HostMemoryNotRegistered = 713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "host memory not registered";
    HardwareStack = 714, "CUDA_ERROR_HARDWARE_STACK_ERROR", "hardware stack error";
    IllegalInstruction = 715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "illegal instruction";
    MisalignedAddress = 716, "CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel accessed a misaligned address";
    InvalidAddressSpace = 717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", "invalid address space";
    InvalidPc = 718, "CUDA_ERROR_INVALID_PC", "invalid pc";
    LaunchFailed = 719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed";
    CooperativeLaunchTooLarge = 720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "not all blocks of a cooperative launch can be resident";
    TensorMemoryLeak = 721, "CUDA_ERROR_TENSOR_MEMORY_LEAK", "tensor memory leak";
    NotPermitted = 800, "CUDA_ERROR_NOT_PERMITTED", "not permitted";
    NotSupported = 801, "CUDA_ERROR_NOT_SUPPORTED", "not supported";
    SystemNotReady = 802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not ready";
    SystemDriverMismatch = 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system driver mismatch";
    CompatNotSupportedOnDevice = 804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "compat not supported on device";
    MpsConnectionFailed = 805, "CUDA_ERROR_MPS_CONNECTION_FAILED", "mps connection failed";
    MpsRpcFailure = 806, "CUDA_ERROR_MPS_RPC_FAILURE", "mps rpc failure";
    MpsServerNotReady = 807, "CUDA_ERROR_MPS_SERVER_NOT_READY", "mps server not ready";
    MpsMaxClientsReached = 808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "mps max clients reached";
    MpsMaxConnectionsReached = 809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", "mps max connections reached";
    MpsClientTerminated = 810, "CUDA_ERROR_MPS_CLIENT_TERMINATED", "mps client terminated";
    CdpNotSupported = 811, "CUDA_ERROR_CDP_NOT_SUPPORTED", "cdp not supported";
    CdpVersionMismatch = 812, "CUDA_ERROR_CDP_VERSION_MISMATCH", "cdp version mismatch";
    StreamCaptureUnsupported = 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "stream capture unsupported";
    StreamCaptureInvalidated = 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "stream capture invalidated";
    StreamCaptureMerge = 902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "stream capture merge";
    StreamCaptureUnmatched = 903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "stream capture unmatched";
    StreamCaptureUnjoined = 904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "stream capture unjoined";
    StreamCaptureIsolation = 905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "stream capture isolation";
    StreamCaptureImplicit = 906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "stream capture implicit";
    CapturedEvent = 907, "CUDA_ERROR_CAPTURED_EVENT", "captured event";
    StreamCaptureWrongThread = 908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "stream capture wrong thread";
    Timeout = 909, "CUDA_ERROR_TIMEOUT", "timeout";
    GraphExecUpdateFailure = 910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "graph exec update failure";
    ExternalDevice = 911, "CUDA_ERROR_EXTERNAL_DEVICE", "external device";
    InvalidClusterSize = 912, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size";
    FunctionNotLoaded = 913, "CUDA_ERROR_FUNCTION_NOT_LOADED", "function not loaded";
    InvalidResourceType = 914, "CUDA_ERROR_INVALID_RESOURCE_TYPE", "invalid resource type";
    InvalidResourceConfiguration = 915, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION", "invalid resource configuration";
    KeyRotation = 916, "CUDA_ERROR_KEY_ROTATION", "key rotation";
    StreamDetached = 917, "CUDA_ERROR_STREAM_DETACHED", "stream detached";
    Unknown = 999, "CUDA_ERROR_UNKNOWN", "unknown error";
}

pub type Outcome<T = ()> = Result<T, Error>;
