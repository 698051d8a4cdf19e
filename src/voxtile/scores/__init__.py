"""Labels and maps to numbers: confusion matrices, objects and lesions, surfaces, millilitres, intervals and paired differences."""
