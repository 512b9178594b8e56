// The Objective-C runtime.
