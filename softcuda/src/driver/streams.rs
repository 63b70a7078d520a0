//! The calls on streams.

use super::boundary::{In, Out, StreamCallback, call};
use super::capture;
use super::context::{Context, PRIORITIES, context};
use super::error::{Error, Outcome, Status};
use super::state::{Handle, driver};
use super::stream::{NON_BLOCKING, Stream, stream};
use super::work::Work;

fn create(made: Out<Handle>, flags: u32, priority: i32) -> Outcome {
    made.check()?;
    let context = context()?;
    if flags & !NON_BLOCKING != 0 {
        return Err(Error::InvalidValue);
    }
    let [least, greatest] = PRIORITIES;
    let priority = priority.clamp(greatest, least);
    let new = |handle| Stream::new(handle, &context as &Context, flags, priority);
    made.set(driver()?.streams.insert_with(new).0)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(made: Out<Handle>, flags: u32) -> Status {
    call("cuStreamCreate", || create(made, flags, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(made: Out<Handle>, flags: u32, priority: i32) -> Status {
    call("cuStreamCreateWithPriority", || create(made, flags, priority))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(handle: Handle) -> Status {
    // Work that it still has goes on: its thread holds it.
    call("cuStreamDestroy_v2", || driver()?.streams.remove(handle).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(handle: Handle) -> Status {
    call("cuStreamSynchronize", || {
        let stream = stream(handle)?;
        if stream.capture_point()?.is_none() {
            capture::forbid()?;
        }
        stream.synchronize()
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(handle: Handle) -> Status {
    call("cuStreamQuery", || {
        let stream = stream(handle)?;
        if let Some(point) = stream.capture_point()? {
            point.session.invalidate();
            return Err(Error::StreamCaptureUnsupported);
        }
        capture::forbid()?;
        stream.health.check()?;
        if stream.is_idle() { Ok(()) } else { Err(Error::NotReady) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(handle: Handle, event: Handle, flags: u32) -> Status {
    call("cuStreamWaitEvent", || {
        let (stream, event) = (stream(handle)?, driver()?.events.get(event)?);
        if flags > 1 {
            return Err(Error::InvalidValue);
        }
        if let Some(point) = event.captured() {
            return capture::join(&stream, &point);
        }
        if let Some(point) = stream.capture_point()? {
            // Recorded outside the capture: a graph could not know it.
            point.session.invalidate();
            return Err(Error::StreamCaptureIsolation);
        }
        match event.pending() {
            Some(number) => stream.submit(Work::Wait(event, number)),
            None => stream.health.check(),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamAddCallback(
    handle: Handle,
    function: Option<StreamCallback>,
    data: usize,
    flags: u32,
) -> Status {
    call("cuStreamAddCallback", || {
        let (stream, function) = (stream(handle)?, function.ok_or(Error::InvalidValue)?);
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        if let Some(point) = stream.capture_point()? {
            point.session.invalidate();
            return Err(Error::StreamCaptureUnsupported);
        }
        stream.submit(Work::Callback { function, stream: handle, data })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetPriority(handle: Handle, priority: Out<i32>) -> Status {
    call("cuStreamGetPriority", || priority.set(stream(handle)?.priority))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetFlags(handle: Handle, flags: Out<u32>) -> Status {
    call("cuStreamGetFlags", || flags.set(stream(handle)?.flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetId(handle: Handle, id: Out<u64>) -> Status {
    call("cuStreamGetId", || {
        let stream = stream(handle)?;
        let own = if stream.handle == 0 { stream.context } else { stream.handle };
        id.set(own as u64)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCtx(handle: Handle, context: Out<Handle>) -> Status {
    call("cuStreamGetCtx", || context.set(stream(handle)?.context))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCtx_v2(
    handle: Handle,
    context: Out<Handle>,
    green: Out<Handle>,
) -> Status {
    call("cuStreamGetCtx_v2", || {
        context.set(stream(handle)?.context)?;
        green.set_if_wanted(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetDevice(handle: Handle, device: Out<i32>) -> Status {
    call("cuStreamGetDevice", || {
        stream(handle)?;
        device.set(0)
    })
}

/// `CU_LAUNCH_ATTRIBUTE_PRIORITY`; the others that streams have are hints.
const PRIORITY: u32 = 8;
const HINTS: [u32; 4] = [1, 3, 9, 10];

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetAttribute(handle: Handle, which: u32, value: Out<[u32; 16]>) -> Status {
    call("cuStreamGetAttribute", || {
        let stream = stream(handle)?;
        let mut found = [0; 16];
        match which {
            PRIORITY => found[0] = stream.priority as u32,
            hint if HINTS.contains(&hint) => {}
            _ => return Err(Error::InvalidValue),
        }
        value.set(found)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSetAttribute(handle: Handle, which: u32, value: In<[u32; 16]>) -> Status {
    call("cuStreamSetAttribute", || {
        stream(handle)?;
        value.get()?;
        if which == PRIORITY || HINTS.contains(&which) { Ok(()) } else { Err(Error::InvalidValue) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCopyAttributes(to: Handle, from: Handle) -> Status {
    call("cuStreamCopyAttributes", || stream(to).and_then(|_| stream(from)).map(drop))
}

super::exports![
    cuStreamCreate,
    cuStreamCreateWithPriority,
    cuStreamDestroy_v2,
    cuStreamSynchronize,
    cuStreamQuery,
    cuStreamWaitEvent,
    cuStreamAddCallback,
    cuStreamGetPriority,
    cuStreamGetFlags,
    cuStreamGetId,
    cuStreamGetCtx,
    cuStreamGetCtx_v2,
    cuStreamGetDevice,
    cuStreamGetAttribute,
    cuStreamSetAttribute,
    cuStreamCopyAttributes,
];
